"""Whole networks with the same bits: classifiers of handwritten digits over integer codes, run in every room, in every
mode, by other kernels and on two devices, at any batch size; and batch invariance as a property of any function.

A network over integers is written once, over the verbs that all rooms have under the same names.
"""

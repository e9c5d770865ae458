"""Other people's quantizers: which arithmetic they compute, and test vectors that judge them. Imports `inputs` and
`modes`."""

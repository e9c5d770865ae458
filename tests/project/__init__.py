"""The project itself: its structure, its packages, its documentation."""

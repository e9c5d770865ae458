"""The specification against libraries by others."""

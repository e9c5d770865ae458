"""Ready targets, one file per library, each with a function `targets` that gives them by name. A file is imported when
one of its targets is resolved; the library itself is found by name then, so that samebits depends on none of them."""

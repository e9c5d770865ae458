"""The command line `samebits`: commands, tables, progress, report pages. Thin: all it shows is found by functions
of the other rooms, and nothing imports it."""

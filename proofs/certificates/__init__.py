"""That the modes agree for every input and every scale: the plan of tiles, their evaluation on one machine or on a
Dask cluster, and the file that says what was covered and on what it rests; primitives
and prototypes on all of their inputs. Imports `inputs`, `modes` and `prototypes`."""

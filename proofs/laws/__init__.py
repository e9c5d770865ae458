"""Properties that any quantizer must satisfy, as functions over an implementation, by subject: codes, special
values, gradients, parameters. `catalog_of_laws` lists them and tells which apply to a quantizer; `of_prototypes` has
those of formulas. Imports `inputs`, `modes` and `prototypes`."""

"""The five execution modes, and three on a GPU: what runs in each of them, conversions between libraries that keep
every bit, and what a result depends on (versions, source). Everything takes and gives NumPy arrays; a framework is
imported when a mode that needs it is first used. Imports no other room of `proofs`."""

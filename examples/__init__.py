"""Programs that use the package as anyone would."""

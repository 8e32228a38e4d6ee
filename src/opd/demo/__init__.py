"""The pair that `opd demo` trains, and its run configuration."""

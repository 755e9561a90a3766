"""The MONAI transforms of this package, array and dictionary."""

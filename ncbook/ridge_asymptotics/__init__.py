"""Ridge regression on any features: effective ridge, degrees of freedom, and the errors that follow."""

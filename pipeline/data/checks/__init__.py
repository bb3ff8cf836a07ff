"""What the checker looks for, one module for each subject."""

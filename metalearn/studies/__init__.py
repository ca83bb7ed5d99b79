"""The studies: a folder for each, with what it measures and how it reports."""

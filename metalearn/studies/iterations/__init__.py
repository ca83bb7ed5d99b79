"""CG iterations and trained accuracy."""

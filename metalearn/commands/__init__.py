"""The program `metalearn`, a file for each verb."""

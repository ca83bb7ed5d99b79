"""Studies of the ways to differentiate: `metalearn bench NAME`."""

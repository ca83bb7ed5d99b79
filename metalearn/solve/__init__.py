"""The other uses of implicit gradients, each a study: `metalearn solve NAME`."""

"""`metalearn play`: a local page on which one draws characters and watches inner loops adapt."""

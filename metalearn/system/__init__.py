"""The machine below: files, memory, devices, random states, provenance."""

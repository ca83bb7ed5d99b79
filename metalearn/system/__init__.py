"""The operating system and the machine: files, memory, devices, random states, provenance."""

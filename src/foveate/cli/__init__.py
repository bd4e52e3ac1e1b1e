"""The roof's front door: parses, calls one function, prints. No torch until a command needs it."""

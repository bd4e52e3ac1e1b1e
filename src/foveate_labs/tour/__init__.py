"""The tour: what ships, then what each part does, on one page."""

"""Ground floor: the field's measures as pure numpy functions, with confidence intervals. No torch."""

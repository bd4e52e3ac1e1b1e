"""Ground floor: typed recipes, errors for users, atomic files, run folders, seeds and progress. No torch."""

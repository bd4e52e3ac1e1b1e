"""Pages of runs by room; `foveate.report.render` finds a page in the table PAGES of a module by its kind."""

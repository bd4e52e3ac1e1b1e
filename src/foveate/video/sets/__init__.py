"""Published question sets about videos, and a user's: a module reads the files of one."""

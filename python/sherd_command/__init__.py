"""Those parts of the command `sherd` that are Python. They import neither torch nor the package sherd."""

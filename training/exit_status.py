"""How the training program ends, as its caller sees it."""

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_LOCKED = 3
# Nothing is wrong with the run: started again, it goes on.
EXIT_RANK_DIED = 4

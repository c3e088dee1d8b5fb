"""How the training program ends, as its caller sees it."""

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_LOCKED = 3
# Nothing is wrong with the run: started again, it goes on.
EXIT_RANK_DIED = 4
# Memory ran out and the run has taken less: started again, it goes on with that.
EXIT_AGAIN = 5

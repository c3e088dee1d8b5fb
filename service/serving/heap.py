"""The heap of a process whose answers have deadlines."""

import gc


def settle_heap() -> None:
    """Keep the garbage collector from what is loaded by now and stays.

    A full collection walks every container there is and holds all threads up meanwhile.  Libraries
    and one model are half a million of them, a quarter of a second on two cores of a server: five
    times what ``/predict`` may be late.  What comes after this call is a few thousand.

    Side effects: collects once, which takes that long; garbage that later comes of what is frozen
    here is freed by its references alone, and stays if it refers to itself.
    """
    gc.collect()
    gc.freeze()

"""The embedded household: real iTHOR layouts with proxy geometry, behind AI2-THOR's own player protocol.

Data walks: :mod:`layouts` (what stands where) -> :mod:`household` (state and actions) -> :mod:`shapes` (what a thing
looks like in its state) -> :mod:`renderer` (pixels) -> :mod:`server` (the FIFO protocol of ``ai2thor``).
"""

VISIBLE_SHARE = 0.0012
"""Share of the frame's pixels from which an object is in view (11 pixels at 96x96)."""

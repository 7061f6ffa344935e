"""Labels on some of the images: Pu et al. 2017, section 4, and what it is compared with.

`softmax`: label decoders p(y | z, theta~). `stein`, `baselines`, `m2`: one update each; `guesses`:
classes of images without a label. `objectives`: which of them a configuration asks for. `predict`:
class probabilities and their scores. `results`: what a run reports of them. `pictures`: its
pictures.

Shapes everywhere: K label decoders (M~ of the paper), M decoders, B images of which the last L have
labels, S codes an image, d code dimensions, C classes.
"""

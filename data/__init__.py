"""Readers of images, one module per format.

`folders`, `arrays`, `tfrecords`, `tensorflow_sets`, `torchvision_sets` and `digits` each have a
function `load(config, split)` that returns a sequence of `images`. `batches` makes batches of
such a sequence, and `tensors` copies them to the device of a network.
"""

"""Where images come from, one format a file.

`folders`, `arrays`, `tfrecords`, `tensorflow_sets`, `torchvision_sets` and `digits` each have a
function `load(config, split)` that returns a sequence of `images`. `batches` makes batches of it,
and `tensors` brings those to the device of a network.
"""

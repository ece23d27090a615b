"""The parts of SDEs: the base class, the reversal, and the tables of discrete chains."""

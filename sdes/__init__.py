"""What SDEs are made of: the base class, the reversal, and the tables of discrete chains."""

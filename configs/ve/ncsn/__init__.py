"""NCSN (Song & Ermon 2019), alone and with techniques of Song & Ermon 2020."""

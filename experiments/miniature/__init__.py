"""The paper in miniature: its findings tried on scenes, with a model that trains in a minute."""

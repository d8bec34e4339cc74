"""Why a small model learns colours and not shapes, and what it takes to learn both."""

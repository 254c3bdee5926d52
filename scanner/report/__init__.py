"""One checkpoint's evidence as a page for people, and the same as JSON for programs."""

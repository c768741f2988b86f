"""Is a set of pairs what it says it is? Every defect, computed again from its files."""

"""What will a run or a study do and require? Settings, arms, memory, disk and time, before anything starts."""

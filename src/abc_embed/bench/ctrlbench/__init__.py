"""CtrlBench: does the vector follow the instruction?"""

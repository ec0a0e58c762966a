"""Wrong responses with their error class by hand. Made up for this project.

An entry is (class, prompt, gold answer, response), with "|" at the end of a response that was cut off.
"""

G1 = ("Let us make 29 from 11 6 3.\n", "29")
G2 = ("Let us make 24 from 8 2 4.\n", "24")
G3 = ("Let us make 10 from 5 7 2.\n", "10")
RESTART = " Let's restart our solution from the beginning, and"
BACK = " Let's go back to where we"

GAMES = [
    ("planning", *G1, " 6 * 3 = 18, left 11 18.\n 18 - 11 = 7, which misses the target!\n"),
    ("planning", *G1, " 11 + 6 = 17, left 3 17.\n 17 + 3 = 20, which misses the target!\n"),
    ("planning", *G2, " 8 + 2 = 10, left 4 10.\n 10 + 4 = 14, which misses the target!\n"),
    ("planning", *G3, " 7 - 5 = 2, left 2 2.\n 2 + 2 = 4, which misses the target!\n"),
    ("planning", *G3, f" 7 - 5 = 2, left 2 2.\n 2 + 2 = 4, which misses the target!\n{RESTART} make 10 from 2 5 7.\n 5 + 7 = "
                      "12, left 2 12.\n 12 + 2 = 14, which misses the target!\n"),
    ("planning", *G1, f" 6 * 3 = 17, left 11 17.\n{RESTART} make 29 from 3 6 11.\n 11 - 6 = 5, left 3 5.\n 5 * 3 = 15, which "
                      "misses the target!\n"),
    ("planning", *G1, " 6 * 3 = 18, left 11 18.\n"),
    ("arithmetic", *G1, " 6 * 3 = 19, left 11 19.\n 19 + 11 = 30, which misses the target!\n"),
    ("arithmetic", *G1, " 6 * 3 = 18, left 11 18.\n 18 + 11 = 28, which misses the target!\n"),
    ("arithmetic", *G2, " 8 * 2 = 16, left 4 16.\n 16 + 4 = 24, which is the target!\n"),
    ("arithmetic", *G2, " 8 - 4 = 3, left 2 3.\n 3 * 2 = 6, which misses the target!\n"),
    ("arithmetic", *G3, " 7 + 5 = 13, left 2 13.\n 13 - 2 = 11, which misses the target!\n"),
    ("arithmetic", *G3, f" 7 - 5 = 2, left 2 2.\n 2 + 2 = 4, which misses the target!\n{RESTART} make 10 from 2 5 7.\n 5 * 2 = "
                        "12, left 7 12.\n 12 - 7 = 5, which misses the target!\n"),
    ("arithmetic", *G1, " 11 - 3 = 9, left 6 9.\n 9 + 6 = 15, which misses the target!\n"),
    ("rule broken", *G1, " 6 * 4 = 24, left 11 24.\n 24 + 11 = 35, which misses the target!\n"),
    ("rule broken", *G1, " 6 * 3 = 18, left 11 18.\n 18 + 6 = 24, which misses the target!\n"),
    ("rule broken", *G2, " 8 * 3 = 24, left 2 4.\n 4 + 2 = 6, which misses the target!\n"),
    ("rule broken", *G2, " 8 + 8 = 16, left 4 16.\n 16 + 4 = 20, which misses the target!\n"),
    ("rule broken", *G3, " 5 + 5 = 10, which is the target!\n"),
    ("rule broken", *G3, " 5 * 2 = 10, which is the target!\n"),
    ("rule broken", *G3, " 7 - 2 = 5, left 5 5.\n 5 * 2 = 10, which is the target!\n"),
    ("rule broken", *G2, f" 8 - 2 = 6, left 4 6.\n 6 + 4 = 10, which misses the target!\n{BACK} make 24 from 4 6.\n 6 * 8 = 48, "
                         "which misses the target!\n"),
    ("copying", *G1, " 6 * 3 = 18, left 12 18.\n 18 + 12 = 30, which misses the target!\n"),
    ("copying", *G1, " 6 * 3 = 18, left 18.\n 18 + 11 = 29, which is the target!\n"),
    ("copying", *G2, " 8 * 2 = 16, left 4 16.\n 16 + 4 = 20, which is the target!\n"),
    ("copying", *G1, f" 6 * 3 = 18, left 11 18.\n 18 - 11 = 7, which misses the target!\n{RESTART} make 28 from 3 6 11.\n 11 + 6 "
                     "= 17, left 3 17.\n 17 + 3 = 20, which misses the target!\n"),
    ("copying", *G1, f" 6 * 3 = 18, left 11 18.\n 18 - 11 = 7, which misses the target!\n{RESTART} make 29 from 3 5 11.\n 11 + 5 "
                     "= 16, left 3 16.\n 16 + 3 = 19, which misses the target!\n"),
    ("copying", *G3, f" 7 - 5 = 2, left 2 2.\n 2 + 2 = 4, which misses the target!\n{BACK} make 10 from 2 12.\n 12 - 2 = 10, "
                     "which is the target!\n"),
    ("copying", *G2, " 4 - 2 = 2, left 2 9.\n 9 * 2 = 18, which misses the target!\n"),
    ("copying", *G3, " 5 * 2 = 10, left 8 10.\n 10 - 8 = 2, which misses the target!\n"),
    ("format", *G1, "The answer is 11 + 6 * 3 = 29."),
    ("format", *G1, " 6*3=18, left 11 18.\n 18+11=29, which is the target!\n"),
    ("format", *G2, " 8 times 2 is 16.\n 16 + 8 = 24, which is the target!\n"),
    ("format", *G3, "make make make 5 7\n"),
    ("format", *G3, " 7 + 5 = 12 left 2 12\n 12 - 2 = 10, which is the target!\n"),
    ("cut off", *G1, " 6 * 3 = 18, left 11 18.\n 18 -|"),
    ("cut off", *G1, f" 6 * 3 = 18, left 11 18.\n 18 - 11 = 7, which misses the target!\n{RESTART} make 29|"),
    ("cut off", *G2, " 8 - 4 = 3, left 2 3.\n 3 * 2 = 6, which misses the target!\n|"),
    ("cut off", *G3, " 7 + 5 = 12, left 2 12.|"),
    ("gave up", *G1, ""),
    ("gave up", *G3, "\n"),
    ("gave up", *G2, " I cannot make 24 from these numbers.\n"),
]  # fmt: skip

JAM = ("Tom has 12 jars of jam. He sells 5 jars for 3 dollars each. How many dollars does he get?", "15")
BUS = ("A bus drives 60 km in an hour. How far does it drive in 2.5 hours?", "150")
EGG = ("A farm packs 144 eggs into boxes of 6. Each box costs 4 dollars. What do all boxes cost?", "96")
AGE = ("Anna is 9 years old. Her brother is 4 years older. How old will he be in 6 years?", "19")
SUM = ("What is the sum of the first 20 positive integers?", "210")
FRAC = ("Compute $\\frac{3}{4} + \\frac{1}{6}$.", "\\frac{11}{12}")
ROOT = ("Solve $x^2 - 5x + 6 = 0$ for the larger root.", "3")
PAINT = ("A wall is 14 m long and 3 m high. A can paints 7 square meters. How many cans are needed?", "6")
TAX = ("A coat costs 80 dollars and is 25 percent off. What is the price?", "60")
DIE = ("Two dice are rolled. What is the probability of a sum of 7?", "\\frac{1}{6}")

TEXTS = [
    ("arithmetic", *JAM, "He sells 5 jars at 3 dollars. 5 * 3 = 18. The answer is 18."),
    ("arithmetic", *BUS, "60 * 2.5 = 140. The answer is 140 km."),
    ("arithmetic", *EGG, "144 / 6 = 26 boxes. 26 * 4 = 104. The answer is 104."),
    ("arithmetic", *AGE, "Her brother is 9 + 4 = 14. In 6 years he will be 14 + 6 = 20. The answer is 20."),
    ("arithmetic", *SUM, "The sum is 20 \\times 21 / 2. First $20 \\times 21 = 410$. Half of that is \\boxed{205}."),
    ("arithmetic", *PAINT, "The area is 14 * 3 = 48. Then 48 / 7 = 6.86, so 7 cans. The answer is 7."),
    ("arithmetic", *TAX, "The discount is 80 * 0.25 = 25. The price is 80 - 25 = 55. #### 55"),
    ("arithmetic", *ROOT, "The discriminant is $25 - 24 = 4$, so the roots are 3.5 and 1.5. \\boxed{3.5}"),
    ("arithmetic", *EGG, "There are 144 / 6 = 24 boxes, which cost 24 * 4 = 98 dollars. The answer is 98."),
    ("arithmetic", *JAM, "5 + 5 + 5 is fifteen, but 3 \\cdot 5 = 16, so \\boxed{16}."),
    ("arithmetic", *BUS, "In 2 hours: 60 * 2 = 120. In half an hour: 60 / 2 = 20. Total 120 + 20 = 140. \\boxed{140}"),
    ("planning", *JAM, "Tom has 12 jars and sells 5, so 12 - 5 = 7 jars are left. The answer is 7."),
    ("planning", *JAM, "12 * 3 = 36. The answer is 36."),
    ("planning", *BUS, "60 / 2.5 = 24. The answer is 24."),
    ("planning", *EGG, "144 * 4 = 576. The answer is 576."),
    ("planning", *EGG, "There are 144 / 6 = 24 boxes. The answer is 24."),
    ("planning", *AGE, "Her brother is 9 - 4 = 5. In 6 years he will be 5 + 6 = 11. The answer is 11."),
    ("planning", *AGE, "9 + 4 = 13. The answer is 13."),
    ("planning", *SUM, "The average is 10, so the sum is 20 * 10 = 200. \\boxed{200}"),
    ("planning", *ROOT, "We factor $(x-2)(x-3) = 0$, so $x = 2$. \\boxed{2}"),
    ("planning", *ROOT, "The sum of the roots is 5, so the larger one is \\boxed{5}."),
    ("planning", *PAINT, "14 + 3 = 17. 17 / 7 = 2.43. So 3 cans. The answer is 3."),
    ("planning", *TAX, "80 + 20 = 100. The answer is 100."),
    ("planning", *TAX, "The discount is 80 / 4 = 20 dollars. The answer is 20."),
    ("planning", *DIE, "There are 36 outcomes and 5 of them have a sum of 7. \\boxed{\\frac{5}{36}}"),
    ("planning", *DIE, "There are 11 possible sums, so the probability is \\boxed{\\frac{1}{11}}."),
    ("planning", *FRAC, "Add the tops and the bottoms: \\boxed{\\frac{4}{10}}."),
    ("planning", *FRAC, "The common denominator is 12, and the answer is \\boxed{\\frac{5}{12}}."),
    ("copying", *JAM, "He sells 6 jars for 3 dollars each. 6 * 3 = 18. The answer is 18."),
    ("copying", *BUS, "The bus drives 65 km in an hour. 65 * 2 = 130. The answer is 130."),
    ("copying", *EGG, "There are 142 eggs. 142 / 6 = 23.67. So 24 boxes and 24 * 5 = 120. The answer is 120."),
    ("copying", *AGE, "Anna is 19 years old. 19 + 4 = 23. In 6 years: 23 + 6 = 29. The answer is 29."),
    ("copying", *PAINT, "The wall is 41 m long. 41 * 3 = 123. 123 / 7 = 17.57, so 18 cans. The answer is 18."),
    ("copying", *TAX, "The coat costs 85 dollars. 85 / 4 = 21.25. 85 - 21.25 = 63.75. The answer is 63.75."),
    ("copying", *JAM, "5 * 13 = 65. The answer is 65."),
    ("copying", *BUS, "60 * 3.5 = 210. \\boxed{210}"),
    ("copying", *SUM, "The sum of the first 25 integers is 25 * 26 / 2, and 25 * 13 = 325. \\boxed{325}"),
    ("copying", *EGG, "144 / 9 = 16 boxes. 16 * 4 = 64. The answer is 64."),
    ("format", *JAM, "He gets 5 * 3 = 15 dollars."),
    ("format", *BUS, "It drives 60 * 2.5 = 150 km in that time."),
    ("format", *AGE, "9 + 4 = 13 and 13 + 6 = 19"),
    ("format", *ROOT, "The larger root is $x = 3$."),
    ("format", *SUM, "Sum: 20 * 21 / 2\n\n210"),
    ("format", *EGG, "Step 1. Divide. Step 2. Multiply. Then add everything up and write it down."),
    ("format", *TAX, "```python\nprint(80 * (1 - 0.25))\n```"),
    ("format", *DIE, "The probability is the number of good outcomes over the number of all outcomes."),
    ("format", *FRAC, "\\boxed{}"),
    ("gave up", *JAM, ""),
    ("gave up", *BUS, "I don't know how to solve this problem."),
    ("gave up", *EGG, "Sorry, I cannot help with that."),
    ("gave up", *ROOT, "The equation has no solution."),
    ("gave up", *DIE, "There is not enough information to answer the question."),
    ("gave up", *PAINT, "This seems impossible. I give up."),
    ("gave up", *SUM, "I was not able to find it, so I will skip this one."),
    ("cut off", *JAM, "First we note that Tom has 12 jars. He sells 5 of them, and each costs|"),
    ("cut off", *BUS, "60 * 2.5 = 150. The answer is|"),
    ("cut off", *SUM, "1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9|"),
    ("cut off", *ROOT, "Wait, let me check. Wait, let me check. Wait, let me check. Wait|"),
    ("cut off", *PAINT, "14 * 3 = 48 and|"),
    ("cut off", *DIE, "I don't know. I don't know. I don't know.|"),
]  # fmt: skip

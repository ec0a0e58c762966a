"""Responses with labels by hand: which kinds of events each holds. Made up for this project.

A label has the letters r (reflection), b (backtrack) and s (restart), or is empty. `PHRASES` has our fixed phrases,
`OWN_WORDS` other models' words, and among both are responses in which the words have an everyday meaning.
"""

PHRASES = [
    ("", " 5 + 3 = 8, left 2 8.\n 8 * 2 = 16, which is the target!\n"),
    ("", " 9 - 4 = 5, left 5 7.\n 5 * 7 = 35, which misses the target!\n"),
    ("rs", " 9 - 4 = 5, left 5 7.\n 5 * 7 = 35, which misses the target!\n But wait, are we solving the problem correctly so "
           "far? Hmm...\n I'm not sure if we're solving the problem correctly so far.\n Let's restart our solution from the "
           "beginning, and make 12 from 4 7 9.\n 9 + 7 = 16, left 4 16.\n 16 - 4 = 12, which is the target!\n"),
    ("rb", " 6 * 3 = 18, left 11 18.\n 18 - 11 = 7, which misses the target!\n But wait, are we solving the problem correctly "
           "so far? Hmm...\n I'm not sure if we're solving the problem correctly so far.\n Let's go back to where we make 29 "
           "from 11 18.\n 18 + 11 = 29, which is the target!\n"),
    ("s", " 2 + 2 = 4, which misses the target!\n Let's restart our solution from the beginning, and make 0 from 2 2.\n"
          " 2 - 2 = 0, which is the target!\n"),
    ("b", " 8 - 6 = 2, left 2 3.\n Let's go back to where we make 24 from 3 8.\n 8 * 3 = 24, which is the target!\n"),
    ("r", " 4 * 6 = 24, which is the target!\n But wait, are we solving the problem correctly so far? Hmm...\n Our solution "
          "seems to be correct so far.\n"),
    ("r", "Tom has 5 + 3 = 8 apples.\n But wait, are we solving the problem correctly so far? Hmm...\n Our solution seems to "
          "be correct so far.\nThe answer is 8.\n"),
    ("rb", "We compute 12 / 4 = 3.\n But wait, are we solving the problem correctly so far? Hmm...\n I'm not sure if we're "
           "solving the problem correctly so far.\n Let's go back to where we had 12 apples.\nWe compute 12 * 4 = 48.\nThe "
           "answer is 48.\n"),
    ("rs", "The sum is 30.\n But wait, are we solving the problem correctly so far? Hmm...\n I'm not sure if we're solving "
           "the problem correctly so far.\n Let's restart our solution from the beginning, and read the problem once more.\n"
           "The sum is 45.\nThe answer is 45.\n"),
    ("", " 3 + 4 = 7, left 7 9.\n 9 - 7 = 2, which is the target!\n"),
    ("", "We compute 7 * 8 = 56.\nThe answer is 56."),
    ("", "Each box has 6 eggs. Four boxes have 6 * 4 = 24 eggs. The answer is 24."),
    ("rsb", " 7 + 5 = 12, which misses the target!\n But wait, are we solving the problem correctly so far? Hmm...\n Let's "
            "restart our solution from the beginning, and make 2 from 5 7.\n 7 * 5 = 35, which misses the target!\n Let's go "
            "back to where we make 2 from 5 7.\n 7 - 5 = 2, which is the target!\n"),
    ("r", " 7 * 5 = 35, left 1 35.\n But wait, are we solving the problem correctly so far? Hmm...\n 35 + 1 = 36, which is "
          "the target!\n"),
    ("r", " 9 + 1 = 10, left 2 10.\n I'm not sure if we're solving the problem correctly so far.\n 10 * 2 = 20, which is the "
          "target!\n"),
    ("b", " 9 + 1 = 10, left 2 10.\n 10 + 2 = 12, which misses the target!\n Let's go back to where we make 8 from 2 10.\n"
          " 10 - 2 = 8, which is the target!\n"),
    ("s", " 5 * 5 = 25, left 3 25.\n 25 + 3 = 28, which misses the target!\n Let's restart our solution from the beginning, "
          "and make 22 from 3 5 5.\n 5 * 5 = 25, left 3 25.\n 25 - 3 = 22, which is the target!\n"),
    ("", " 12 - 5 = 7, left 3 7.\n 7 - 3 = 4, which misses the target!\n"),
    ("", "First $x + y = 10$. Then $x = 6$ and $y = 4$. Their product is $\\boxed{24}$."),
    ("rb", "So $x = 6$.\n But wait, are we solving the problem correctly so far? Hmm...\n I'm not sure if we're solving the "
           "problem correctly so far.\n Let's go back to where we set up $x + 2 = 10$.\nSo $x = 8$, and the answer is "
           "$\\boxed{8}$."),
    ("rs", "So $n = 9$.\n But wait, are we solving the problem correctly so far? Hmm...\n Let's restart our solution from the "
           "beginning, and let $n$ be even.\nThen $n = 10$, and the answer is $\\boxed{10}$."),
    ("r", "The area is $\\pi r^2 = 9\\pi$.\n But wait, are we solving the problem correctly so far? Hmm...\n Our solution seems "
          "to be correct so far.\nSo the answer is $\\boxed{9\\pi}$."),
    ("", " 11 + 6 = 17, left 3 17.\n 17 + 3 = 20, which is the target!\n"),
    ("", " 1 + 1 = 2, which is the target!\n"),
    ("b", " 11 + 6 = 17, left 3 17.\n 17 - 3 = 14, which misses the target!\n Let's go back to where we make 51 from 3 17.\n"
          " 17 * 3 = 51, which is the target!\n"),
    ("rb", " 20 - 8 = 12, left 2 12.\n But wait, are we solving the problem correctly so far? Hmm...\n I'm not sure if we're "
           "solving the problem correctly so far.\n Let's go back to where we make 80 from 2 8 20.\n 20 * 8 = 160, left 2 "
           "160.\n 160 / 2 = 80, which is the target!\n"),
    ("", "The train needs 120 / 60 = 2 hours. The answer is 2."),
    ("", "Anna had 14 cards and lost 5, so 14 - 5 = 9. The answer is 9."),
    ("r", "Anna had 14 - 5 = 9 cards.\n I'm not sure if we're solving the problem correctly so far.\nThe answer is 9."),
    ("", "There are 3 * 12 = 36 months. The answer is 36."),
    ("s", "There are 3 * 12 = 36 months.\n Let's restart our solution from the beginning, and count the years.\nThere are 4 * "
          "12 = 48 months. The answer is 48."),
    ("", " 15 - 6 = 9, left 4 9.\n 9 * 4 = 36, which is the target!\n"),
    ("", " 15 + 6 = 21, left 4 21.\n 21 - 4 = 17, which misses the target!\n"),
    ("", "The rule gives $f(3) = 3^2 + 1 = 10$. The answer is $\\boxed{10}$."),
    ("rs", " 4 + 4 = 8, left 4 8.\n 8 - 4 = 4, which misses the target!\n I'm not sure if we're solving the problem correctly "
           "so far.\n Let's restart our solution from the beginning, and make 12 from 4 4 4.\n 4 + 4 = 8, left 4 8.\n 8 + 4 = "
           "12, which is the target!\n"),
]  # fmt: skip

OWN_WORDS = [
    # Reflections alone.
    ("r", "So she has 12 apples left. Wait, is that right? She started with 20 and gave away 8, so yes, 12."),
    ("r", "5 * 7 = 35. Let me double-check: 5 + 5 + 5 + 5 + 5 + 5 + 5 = 35. Yes. The answer is 35."),
    ("r", "The perimeter is 26 cm. Let me verify this. 2 * (8 + 5) = 26. Good. Answer: 26."),
    ("r", "Hmm, 17 is prime, so the only factors are 1 and 17. The sum is \\boxed{18}."),
    ("r", "x = 4. Actually, x could also be -4, since the square removes the sign. So both \\boxed{\\pm 4}."),
    ("r", "He pays 3 * 4 = 13 dollars. I made a mistake: 3 * 4 = 12. He pays 12 dollars. #### 12"),
    ("r", "Then 48 / 6 = 7. That's wrong, 48 / 6 = 8. So each child gets 8."),
    ("r", "The probability is 7/5. This can't be right, since a probability is at most 1. It must be 5/7."),
    ("r", "We get n = 13. Does this satisfy the equation? 13^2 = 169, yes. So n = 13."),
    ("r", "So the total is 54. Let me check my work: 20 + 30 + 4 = 54. The answer is \\boxed{54}."),
    ("r", "I'm not sure about the second condition, but the first one gives x = 3. The answer is 3."),
    ("r", "Oops, I forgot the minus sign. The slope is -2, so the answer is \\boxed{-2}."),
    ("r", "That would give 11 people, but wait, Tom himself must be counted, so it is 12."),
    ("r", "The answer is 90. Hold on, the question asks for minutes, so the answer is 5400."),
    ("r", "Sorry, the discount is 20%, not 25%. So the price is 80 dollars."),
    ("r", "We find a = 2, b = 5. Is this correct? 2 + 5 = 7 and 2 * 5 = 10. Yes."),
    ("r", "36 + 45 = 71. No wait, 36 + 45 = 81. So the answer is 81."),
    ("r", "This gives 15 - 20 = -5 apples. That doesn't make sense, so she must have bought them: 15 + 20 = 35."),
    ("r", "The answer should be even. Something is wrong with my sum: 4 + 6 + 8 = 18, not 17. So 18."),
    ("r", "On second thought, the circle touches both axes, so r = 3 and the answer is 9\\pi."),
    ("r", "We must have misread the problem: it asks for the difference, which is 6."),
    ("r", "Thus k = 7. Checking: 7 * 3 - 1 = 20, as required. \\boxed{7}"),
    ("r", "So 6 + 9 = 16, hmm, no, 15. The answer is 15."),
    ("r", "I think the ratio is 3:4. Am I sure? 12 / 16 = 3/4, yes I am. The answer is 3/4."),
    ("r", "Did I count the first day? Yes, day 1 to day 5 are five days. The answer is 5 days."),
    ("r", "Our answer is too large, because the area of the square is only 16. The arithmetic was 4 * 3 = 12. So 12."),
    ("r", "Let's make sure that this is valid: 2^5 = 32 < 40. It is. So \\boxed{5}."),
    ("r", "wait no that's 24 not 26. answer 24"),
    ("r", "The sum is 100. Let me sanity-check this with small cases: n = 1 gives 1, n = 2 gives 3. Fine. \\boxed{100}"),
    ("r", "My mistake, the base is 6 and not 8, so the area is 1/2 * 6 * 4 = 12."),
    # Backtracks, with or without a reflection.
    ("rb", "8 + 7 = 15, then 15 - 3 = 12. That is wrong. Let me try again. 8 * 3 = 24, and 24 - 7 = 17. Done."),
    ("rb", "Using substitution we get 0 = 0. Hmm, that doesn't help. Let's try a different approach: add the two equations. "
           "Then x = 3."),
    ("b", "10 - 4 = 6 and 6 * 2 = 12. Let me try another combination. 10 * 2 = 20 and 20 + 4 = 24. \\boxed{24}"),
    ("rb", "Wait, this doesn't work. Let me go back to step 2 and use y = 5 instead. Then x = 15 - 5 = 10."),
    ("b", "Alternatively, we can count the complement: 36 - 11 = 25 outcomes. The answer is 25/36."),
    ("rb", "So AB = 7. But that can't be right because AC = 3 and BC = 3. I'll redo this step: AB = 5."),
    ("b", "Attempt 1: 3 * 5 = 15, 15 + 9 = 24. Not 21.\nAttempt 2: 9 - 5 = 4, 4 * 3 = 12. Not 21.\nAttempt 3: 9 + 5 = 14, "
          "14 + 3 = 17."),
    ("b", "First idea: factor it. The factors are not integers. Another way: complete the square. (x - 3)^2 = 2, so "
          "x = 3 \\pm \\sqrt{2}."),
    ("rb", "Hmm, I get 41, which is too big. Let's backtrack. After 25 - 6 = 19 we can also subtract 3: 19 - 3 = 16."),
    ("b", "Let me recalculate the total: 14 + 18 + 22 = 54. So the mean is 18."),
    ("rb", "Actually, let's use the law of cosines instead. c^2 = 9 + 16 - 24 \\cos 60 = 13."),
    ("b", "That gives 18, not 20. Let's try something else: 4 * 6 = 24 and 24 - 4 = 20."),
    ("rb", "Oops, I dropped a factor of 2. Going back to the integral: 2 \\int x dx = x^2. The answer is 9."),
    ("b", "Scratch that. We need the least common multiple, lcm(4, 6) = 12."),
    ("rb", "Is 91 prime? No, 91 = 7 * 13. Let me pick another number: 97 is prime. \\boxed{97}"),
    ("b", "Instead, let us count the pairs with an odd sum. There are 9 of them."),
    ("b", "Case 1 gives nothing. Let's go back and look at x < 0. There x = -2 works."),
    ("rb", "I made an error above. Returning to the equation 3x + 2 = 11, we get x = 3."),
    ("b", "Let's step back. The triangle is isosceles, so both angles are 70 degrees and the third is 40."),
    ("b", "We could try 7 * 3 = 21. Then 21 + 5 = 26. Let's try with subtraction, try again: 21 - 5 = 16. Yes, 16."),
    ("rb", "That's not right. Let me try once more: 50 - 15 = 35, and 35 / 5 = 7. The answer is 7."),
    ("b", "I will undo the last move and use 6 + 2 = 8. Then 8 * 3 = 24."),
    ("rb", "Wait. I misread it. Let me redo the calculation with 12 months: 12 * 50 = 600. The answer is 600."),
    ("b", "A different approach: use symmetry. Each side gets half, so 45."),
    ("b", "we should try another order. 3 first, then 9. 3 * 9 = 27. ok 27"),
    ("b", "Let's consider a different strategy. Count from the end: 2, 4, 8, so the first was 16."),
    ("rb", "Hmm, 31 misses 30 by one. Let me back up to 6 * 5 = 30. That is already the answer: 30."),
    ("b", "Let me revisit the second equation. It says 2y = 8, so y = 4."),
    # Restarts.
    ("s", "7 * 4 = 28, 28 - 9 = 19. Not 25. Let me start over. 9 + 4 = 13, 13 + 7 = 20."),
    ("rs", "This is getting messy and it can't be right. Let's start from scratch. Let x be the number of cows. Then "
           "4x + 2(30 - x) = 74, so x = 7."),
    ("rs", "Wait, I used the wrong numbers. Starting over: 15 + 27 = 42. The answer is 42."),
    ("s", "Let's begin again with a clear table. Monday 3, Tuesday 5, Wednesday 7. The total is 15."),
    ("s", "OK, from the beginning: there are 24 students, and a third of them are boys. That is 8 boys."),
    ("rs", "No, that is wrong. I will solve it again from the start. 2x = 18 gives x = 9."),
    ("s", "Let me restart. The first term is 2 and the ratio is 3, so the fourth term is 54."),
    ("s", "So we are back to square one. Let p be the price. Then p - 0.2p = 40, so p = 50."),
    ("rs", "Hmm, the numbers do not add up and I'm not sure why. Let me redo everything from the beginning. 8 * 5 = 40 and "
           "40 + 2 = 42."),
    ("s", "We have to start again: place the origin at A. Then B = (4, 0) and C = (0, 3), so BC = 5."),
    ("rsb", "That's incorrect. Let me try a different way. 6 + 6 = 12. No. Let me start over. 6 * 6 = 36, and 36 - 12 = 24."),
    ("s", "I'd better start afresh. The rectangle has sides a and 2a, so 6a = 36 and a = 6."),
    ("rs", "Oops. Let's retry the whole problem from scratch. There are 5! = 120 orders. The answer is 120."),
    ("s", "let's restart\n5 - 2 = 3\n3 * 4 = 12\nanswer 12"),
    # The same words with an everyday meaning, and plain solutions.
    ("", "The average wait time is 15 minutes, so three people wait 45 minutes in total. The answer is 45."),
    ("", "Tom must wait for the bus for 10 minutes and then ride 20 minutes. 10 + 20 = 30."),
    ("", "She waits 5 minutes at each of the 6 stops, so 5 * 6 = 30 minutes."),
    ("", "The race starts again at 3 pm and ends at 5 pm, so it takes 2 hours."),
    ("", "Tom starts over with 50 marbles on Monday and wins 10 a day. On Friday he has 90."),
    ("", "The store has a back entrance. 4 people use it every hour, so 4 * 8 = 32 people."),
    ("", "They walk 3 km and go back the same way, so they walk 6 km in total."),
    ("", "Instead of 20 dollars, she pays 15 dollars. She saves 5 dollars."),
    ("", "Sara made 3 mistakes on the test and lost 2 points for each, so she lost 6 points."),
    ("", "To check whether 91 is divisible by 7, divide: 91 / 7 = 13. So it is divisible."),
    ("", "The right triangle has legs 3 and 4. The hypotenuse is 5."),
    ("", "In how many ways can we try the keys? There are 4! = 24 orders."),
    ("", "The clock is 5 minutes too slow. After 12 days, it is 60 minutes behind."),
    ("", "Correct answers give 4 points and wrong answers cost 1 point. With 10 correct and 5 wrong he has 35 points."),
    ("", "The error of the measurement is at most 0.5 cm, so the length is between 9.5 and 10.5 cm."),
    ("", "Solve 2x + 3 = 11. Subtract 3: 2x = 8. Divide by 2: x = 4. \\boxed{4}"),
    ("", "Let x be the number of girls. Then x + 12 = 30, so x = 18. The answer is \\boxed{18}."),
    ("", "By the Pythagorean theorem, c^2 = 25 + 144 = 169, so c = 13."),
    ("", "She alternates red and blue beads. With 20 beads, 10 are red."),
    ("", "The sequence begins again after 6 terms, so the 100th term is the 4th one, which is 7."),
    ("", "From the beginning of the line to the end there are 12 people. Each pays 5 dollars: 60 dollars."),
    ("", "We start from the equation y = 2x and substitute: 2x + x = 9, so x = 3."),
    ("", "A number is wrong if its digits repeat. From 10 to 20 only 11 repeats, so 10 numbers are left."),
    ("", "He returned to the shop and bought 2 more pens, so he has 3 + 2 = 5 pens."),
    ("", "The cashier made an error of 3 dollars in each of 4 bills: 12 dollars in all."),
    ("", "This is a right angle, so the other two angles sum to 90 degrees."),
    ("", "Note that we must have n > 0, so n = 4. \\boxed{4}"),
    ("", "Now we multiply both sides by 3 to get x = 12. Next, y = x - 5 = 7. The answer is 19."),
    ("", "The bus goes back and forth 4 times, 10 km each way, so it drives 80 km."),
    ("", "If she tries 3 doors a minute, she needs 4 minutes for 12 doors."),
    ("", "It takes 6 hours to fill the tank and 2 more hours to do it again for the small one. Total 8."),
    ("", "Two of the three statements are true, so one is false. The answer is 1."),
    ("", "Step 1: 12 * 4 = 48. Step 2: 48 + 2 = 50. Step 3: 50 / 5 = 10. Answer: 10"),
    ("", "def f(n): return n + 2. So f(3) = 5."),
    ("", "The answer is (B) 14."),
    ("", "There are 26 letters and 10 digits, so 26 * 10 = 260 codes."),
    ("", "Since the die is fair, each outcome has probability 1/6. Two of them are good, so 1/3."),
    ("", "The waiter earns 8 dollars an hour. In 7 hours he earns 56 dollars."),
    ("", "Half of 90 is 45. A third of 45 is 15. The answer is 15."),
    ("", "We use the formula for the sum of an arithmetic series: n(a + l)/2 = 10 * 11 / 2 = 55."),
    ("", "Because 2 is the only even prime, the sum is odd. The numbers are 2 and 11, so the product is 22."),
    ("", "He can not be sure to draw a red ball before the 6th draw. So the answer is 6."),
    ("", "Her first try scored 12, her second try 15. The difference is 3."),
    ("", "Each side of the table has a different color. There are 3 colors, so 3^4 = 81 tables."),
    ("", "Ann restarts the computer twice a day. In a week she does so 14 times."),
    ("", "Let a, b and c be the roots. Then a + b + c = 6 and abc = 6, so the roots are 1, 2 and 3."),
    ("", "First count the pairs that are not allowed. There are 4 of them, and 15 - 4 = 11."),
    ("", "The question says that 40% are correct. 40% of 50 is 20."),
]  # fmt: skip

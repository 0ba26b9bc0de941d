// Package ledger counts what keys and applications use, and decides by it whether a request may pass: requests and tokens per minute,
// requests at one time, and what is spent in a day and a month.
//
// Input: requests that want to pass, with the limits of their key and application, and what they turned out to use. Output: reservations,
// or the limit that refuses and whose it is; balances; and rows of usage to report. The clock is passed in. It starts no goroutines; its
// journal, in package journal, has one of its own.
//
// # What is promised
//
// No 60 seconds, whichever their start, contain more requests that passed than the limit allows. A limit per minute is kept in slots of a
// second, so that a request counts for 60 to 61 seconds.
//
// A budget that is Strict is never passed: a request passes while spent + reserved + its worst case stay within the cap, provided that
// nothing is settled above its worst case.
//
// A budget that is enforced UntilReached lets a request pass while spent + reserved is below the cap. What is reserved is the request's
// input, and what requests of the same key and model were found to use beyond that: the mean of late, in which a sample weighs an eighth,
// plus the mean deviation; the worst case while nothing is known. So a cap is passed by at most the cost of the request that reached it,
// plus what requests under way turn out to cost above their reservations. Of equal requests that is less than the cost of one.
//
// Tokens per minute are refused once what was used and what is reserved have reached the limit; they count when the request is settled.
// What is reserved is learned in the same way; while nothing is known, it is the input and 1,024 tokens.
//
// A request that was let through is on disk before Reserve returns, and its cost before Settle does. What is found open at the start is
// charged. A clock that goes back frees nothing; a day and a month end when a later one begins in the zone of the budgets.
package ledger

// Package journal keeps what the ledger must not forget on the disk of one enforcer.
//
// Input: changes, each of which is a reservation made or ended and what accounts stand at with it (Append). Output: when a change is known
// to be on disk (Wait), what was there when the process began (OpenDir), and what accounts used in days and months before (History,
// Months).
//
// Each Journal has one goroutine, the committer, which ends with Close. It takes all that is queued, without what a later change made
// void, and writes it in one transaction; what comes meanwhile is the next. So many callers share the two times that a commit has to wait
// for the disk, and a single one waits for nothing else.
//
// # What is promised
//
// Once Wait has returned nil, the change survives a crash of the process and a loss of power, as far as the disk keeps what it said it
// has written. All of a change survives, or nothing. A change is never there without those that came before it. While the disk cannot be
// written, changes are kept in memory, as the latest state of each account and the reservations under way, and written when it can.
//
// A file that is damaged is found when it is opened: every value has a checksum over it, its key and its bucket, every bucket has a count
// and a sum of these checksums, and all pages are looked at before bbolt sees them. It is set aside as ledger.db.damaged-<unix seconds>.
// One thing cannot be told from a loss of power in the middle of a commit: one of bbolt's two heads of the file is not sound. The file
// is used, as of the latest sound head, with a line in the log.
//
// # On disk
//
// The file is ledger.db, a database of bbolt's. All values begin with a CRC-32C and a version.
//
//	meta      format → "1"; head → number of commits, next ID, and count and sum of each bucket
//	accounts  ID → current day, month, totals of both, last use, blocked since
//	open      ID (8 bytes, big-endian) → reservation
//	days      account's ID, 0, day (4 bytes, big-endian, 20261123) → totals
//	months    account's ID, 0, month (202611) → totals
//
// A day and a month are written to the history when the account's next one begins. They are kept for 62 days and 14 months, and accounts
// for 14 months after their last use; each commit removes a few of those that are older. Of 100,000 accounts, each takes about 200 bytes
// without history, and one that is used every day about 12 KB with all of its history. The file grows ahead by up to 16 MiB, and a start
// makes it smaller when more than half of it is free. A newer format is refused, and the file left alone.
package journal

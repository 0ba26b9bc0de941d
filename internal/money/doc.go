// Package money holds exact amounts of one currency, as whole nano-units in an int64.
//
// Input: decimal strings as the API accepts them. Output: Amounts, and the same strings in their shortest form.
// Nothing in it is a float, nothing in it starts a goroutine.
package money

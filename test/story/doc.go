// Package story holds people's documentation of the plugin against the running system: README.md's session and docs/story.md are run line
// by line and compared with what they show, and every example of docs/cli is run. It is all tests. The processes of the system are started
// and stopped by TestMain, and each test owns those that it starts.
package story

// Package api tests the kinds as their users meet them: YAML against a real API server.
//
// testdata/good holds what must be accepted, testdata/bad what must be refused. A file's documents are applied one after the
// other, each as a new version of the object before it where kind and name are the same. A document with "# want:" comments must
// be refused, by a message that says each of them: the field and the mend. One without must be accepted.
package api

package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"syscall"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/tools/clientcmd"
)

// The exit codes. Help and docs/cli list them.
const (
	exitOK          = 0
	exitFailed      = 1 // an error; of "why": a request would be refused; of "doctor": something needs mending
	exitUndecided   = 2 // of "why": it could not be told
	exitInterrupted = 130
)

const exitCodesHelp = `Exit codes:
  0    it is done
  1    it is not, and stderr says why; of "why": a request would be refused; of "doctor": something needs mending
  2    of "why": whether a request would pass could not be told
  130  Ctrl-C`

// ExitError ends the program with a code of its own. Without Err nothing is printed.
type ExitError struct {
	Code int
	Err  error
}

// Error is what is wrong.
func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

// Unwrap is what is wrong.
func (e *ExitError) Unwrap() error { return e.Err }

// Run runs the plugin with its arguments, the program's name not among them, and returns the exit code. A context that is cancelled with an
// *ExitError as its cause ends with that code, otherwise with 130.
func Run(ctx context.Context, args []string, streams genericiooptions.IOStreams) int {
	root := NewCommand(streams) //nolint:contextcheck // completions take the context of the command that they belong to
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	code := exitFailed
	exit, own := errors.AsType[*ExitError](err)
	switch {
	case own:
		code = exit.Code
	case ctx.Err() != nil:
		code = exitInterrupted
		if cause, ok := errors.AsType[*ExitError](context.Cause(ctx)); ok {
			code = cause.Code
		}
		if notice, ok := errors.AsType[*noticeError](err); ok {
			_, _ = fmt.Fprintln(streams.ErrOut, notice.notice)
		}
		return code
	}
	if !own || exit.Err != nil {
		_, _ = fmt.Fprintln(streams.ErrOut, explain(err))
	}
	return code
}

// noticeError adds what a person has to know even if the command was interrupted, such as what it has created until then.
type noticeError struct {
	err    error
	notice string
}

func (e *noticeError) Error() string { return e.err.Error() + "\n" + e.notice }
func (e *noticeError) Unwrap() error { return e.err }

// explain puts an error into the words that kubectl uses, and says what to do where that is known.
func explain(err error) string {
	text := "error: " + err.Error()
	var status apierrors.APIStatus // not an error by its type, so that AsType does not take it
	if errors.As(err, &status) && status.Status().Reason != metav1.StatusReasonUnknown {
		text = fmt.Sprintf("Error from server (%s): %s", status.Status().Reason, err.Error())
	}
	if hint := hintFor(err); hint != "" {
		text += "\n" + hint
	}
	return text
}

// kindMissing reports whether an error says that the API server does not know the kind, rather than that there is no object of a name.
func kindMissing(err error) bool {
	return apierrors.IsNotFound(err) && strings.Contains(err.Error(), "the server could not find the requested resource")
}

// hintFor is what to do about an error; empty: nothing is known.
func hintFor(err error) string {
	groups, groupsFailed := errors.AsType[*discovery.ErrGroupDiscoveryFailed](err)
	urlError, asking := errors.AsType[*url.Error](err)
	_, isNet := errors.AsType[net.Error](err)
	switch {
	case meta.IsNoMatchError(err), groupsFailed && len(groups.Groups) > 0, kindMissing(err):
		return "Latchkey's kinds are not there: install it, or point --context at the cluster that has it; kubectl latchkey doctor tells more"
	case apierrors.IsForbidden(err) && !isGuards(err):
		return "You lack this permission: ask whoever manages the cluster for one of Latchkey's roles; kubectl latchkey doctor lists what you may do"
	case apierrors.IsUnauthorized(err):
		return "The API server does not accept your credentials: log in again, or choose another --context"
	case clientcmd.IsEmptyConfig(err):
		return "There is no kubeconfig: set KUBECONFIG or --kubeconfig"
	case asking && errors.Is(err, syscall.ECONNREFUSED):
		return "Nothing listens at " + urlError.URL + ": is it the right address, and does it run?"
	case asking && isNet && urlError.Timeout():
		return "There was no answer in time: is the address right, and is the network up?"
	}
	return ""
}

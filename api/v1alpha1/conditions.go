package v1alpha1

// Condition types. Each kind's page in docs/ lists those it sets.
const (
	// ConditionReady says that the spec has been carried out. It stays True for a key that is disabled or over budget,
	// since kstatus (Flux, Argo CD) reads False as "still in progress".
	ConditionReady = "Ready"
	// ConditionStalled is True when the object cannot become Ready until somebody mends it; absent otherwise.
	ConditionStalled = "Stalled"
	// ConditionUsable says what a caller of the key, or of the application's keys, meets.
	ConditionUsable = "Usable"
	// ConditionEnforced says that every connected enforcer has acknowledged this generation.
	ConditionEnforced = "Enforced"
	// ConditionRevealed says whether the plaintext of the key has been taken.
	ConditionRevealed = "Revealed"
	// ConditionRotating is True while an earlier key is honoured beside the present one, and False once it has ended; absent on a key that
	// was never rotated.
	ConditionRotating = "Rotating"
)

// Reasons. The same words appear in conditions, events, the detail of HTTP errors and metric labels.
const (
	// ReasonReconciled goes with Ready=True.
	ReasonReconciled = "Reconciled"
	// ReasonLimitClamped goes with Ready=True: a limit is above the SystemPolicy's maximum and the maximum applies. Also an event.
	ReasonLimitClamped = "LimitClamped"
	// ReasonDeleting goes with Ready=False while finalizers run.
	ReasonDeleting = "Deleting"
	// ReasonKeysRemain goes with Ready=False: an Application cannot go while it still has keys.
	ReasonKeysRemain = "KeysRemain"

	// ReasonApplicationNotFound goes with Ready=False: the key's Application does not exist (yet).
	ReasonApplicationNotFound = "ApplicationNotFound"
	// ReasonProviderNotFound goes with Ready=False: the model's Provider does not exist (yet).
	ReasonProviderNotFound = "ProviderNotFound"
	// ReasonProviderNotReady goes with Ready=False: the model's Provider exists but cannot be used.
	ReasonProviderNotReady = "ProviderNotReady"
	// ReasonCredentialNotFound goes with Ready=False: the provider's credential Secret, or the key in it, is missing.
	ReasonCredentialNotFound = "CredentialNotFound"
	// ReasonModelNameTaken goes with Ready=False, Stalled=True: an older Model already answers to this name.
	ReasonModelNameTaken = "ModelNameTaken"
	// ReasonInvalid goes with Ready=False, Stalled=True: something that the schema cannot check is wrong; the message says what.
	ReasonInvalid = "Invalid"
	// ReasonSecretConflict goes with Ready=False, Stalled=True: a Secret of the chosen name exists and belongs to somebody else.
	ReasonSecretConflict = "SecretConflict"
	// ReasonSecretLost goes with Ready=False, Stalled=True and Usable=False: the key's Secret is gone, or does not hold this key any more.
	ReasonSecretLost = "SecretLost"
	// ReasonDuplicateKey goes with Ready=False, Stalled=True and Usable=False: an older APIKey holds the same secret.
	ReasonDuplicateKey = "DuplicateKey"
	// ReasonRetainNotAllowed goes with Ready=False, Stalled=True: the key asks for Retain and the SystemPolicy forbids it.
	ReasonRetainNotAllowed = "RetainNotAllowed"

	// ReasonActive goes with Usable=True.
	ReasonActive = "Active"
	// ReasonPending goes with Usable, Enforced or Revealed not True yet, for want of something that is under way.
	ReasonPending = "Pending"
	// ReasonDisabled goes with Usable=False: spec.state is Disabled.
	ReasonDisabled = "Disabled"
	// ReasonExpired goes with Usable=False: spec.expirationTime has passed.
	ReasonExpired = "Expired"
	// ReasonApplicationDisabled goes with Usable=False: the Application's spec.state is Disabled.
	ReasonApplicationDisabled = "ApplicationDisabled"
	// ReasonBudgetExhausted goes with Usable=False: a budget of the key or of its application is spent.
	ReasonBudgetExhausted = "BudgetExhausted"

	// ReasonBudgetNearlyExhausted is an event: 80 % of a budget are spent.
	ReasonBudgetNearlyExhausted = "BudgetNearlyExhausted"
	// ReasonMaxKeysReached goes with Ready=False and Usable=False: the Application has as many older keys as its maxKeys allows.
	ReasonMaxKeysReached = "MaxKeysReached"

	// ReasonAcknowledged goes with Enforced=True.
	ReasonAcknowledged = "Acknowledged"
	// ReasonNoEnforcers goes with Enforced=False: no enforcer is connected.
	ReasonNoEnforcers = "NoEnforcers"
	// ReasonRejected goes with Enforced=False: an enforcer refused the configuration; the message quotes it. Also an event.
	ReasonRejected = "Rejected"

	// ReasonKeyMinted is an event: a key was made, and stands in its Secret.
	ReasonKeyMinted = "KeyMinted"
	// ReasonKeyRotated is an event: the key was replaced by a new one.
	ReasonKeyRotated = "KeyRotated"
	// ReasonOverlap goes with Rotating=True: an earlier key is honoured until the message's time.
	ReasonOverlap = "Overlap"
	// ReasonPreviousKeyEnded goes with Rotating=False: the earlier key is refused. Also an event.
	ReasonPreviousKeyEnded = "PreviousKeyEnded"
	// ReasonClaimed goes with Revealed=True: somebody took the plaintext.
	ReasonClaimed = "Claimed"
	// ReasonRetained goes with Revealed=True: the plaintext stays in the Secret, as asked for by retention: Retain.
	ReasonRetained = "Retained"
	// ReasonRevealExpired goes with Revealed=False: nobody took the plaintext in time, and it has been removed.
	ReasonRevealExpired = "RevealExpired"
)

// Names that Latchkey sets on objects.
const (
	// AnnotationRevealed on a key's Secret, set to "true" by whoever has copied the plaintext by hand, asks for its removal.
	AnnotationRevealed = "latchkey.dev/revealed"
	// AnnotationRemoval on a key's Secret is set by the controller when it removes the plaintext itself: Claimed or RevealExpired.
	AnnotationRemoval = "latchkey.dev/plaintext-removal"
	// AnnotationRevealDeadline on a key's Secret says, in RFC 3339, when an untaken plaintext is removed.
	AnnotationRevealDeadline = "latchkey.dev/reveal-deadline"
	// AnnotationRotationGeneration on a key's Secret is the spec.rotation.generation that the key in it came of. With it a Secret that is
	// restored from a backup is not rotated anew.
	AnnotationRotationGeneration = "latchkey.dev/rotation-generation"
	// AnnotationConfirmDeletion on an APIKey or Application repeats its spec.displayName. The guard of deletions, where it is installed, lets go
	// of those alone that have it.
	AnnotationConfirmDeletion = "latchkey.dev/confirm-deletion"
	// AnnotationRotationTime on a key's Secret says, in RFC 3339, when the key in it took the earlier one's place.
	AnnotationRotationTime = "latchkey.dev/rotation-time"
	// LabelAPIKey on a Secret names the APIKey that it belongs to; only Secrets that carry it are read outside the installation's namespace.
	LabelAPIKey = "latchkey.dev/api-key"
	// FinalizerAPIKey holds an APIKey back until its Secret is gone.
	FinalizerAPIKey = "latchkey.dev/api-key"
	// FinalizerApplication holds an Application back until its keys are gone.
	FinalizerApplication = "latchkey.dev/application"
)

// Keys in the data of an APIKey's Secret.
const (
	// SecretDataAPIKey holds the plaintext, until it has been taken.
	SecretDataAPIKey = "apiKey"
	// SecretDataKeyHash holds the SHA-256 of the plaintext, in lower-case hex.
	SecretDataKeyHash = "keyHash"
	// SecretDataKeyPrefix holds the first characters of the plaintext, for people to tell keys apart.
	SecretDataKeyPrefix = "keyPrefix"
	// SecretDataPreviousKeyHash holds the SHA-256 of the earlier key, while that is honoured after a rotation.
	SecretDataPreviousKeyHash = "previousKeyHash"
	// SecretDataPreviousKeyPrefix holds the first characters of the earlier key.
	SecretDataPreviousKeyPrefix = "previousKeyPrefix"
)

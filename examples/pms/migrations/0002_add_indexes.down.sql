DROP INDEX reservations_nights ON reservations;
